"""Trained: each prompt's map is highest in the shape that it names, and an image is like itself where its shape is."""

import numpy as np
import onnxruntime as ort

from model_zoo_fixtures.shapes.dataset import HELD_OUT_SEED, classification_scene, multi_object_scene
from model_zoo_fixtures.shapes.likeness import shape_embedding, shape_prompts
from xai_insert import Options, insert


def session(model):
    inserted = insert(model, Options(output_dtype="f32", check=False)).model
    return ort.InferenceSession(inserted.SerializeToString(), providers=["CPUExecutionProvider"])


def pixels(scene):
    return scene.image.transpose(2, 0, 1)[None].astype(np.float32)


def share_in_box(found):
    """How many of the maps are highest in the box of their object."""
    hits = []
    for saliency, item in found:
        row, column = np.unravel_index(saliency.argmax(), saliency.shape)
        height, width = saliency.shape
        hits.append(item.contains((column + 0.5) * 96 / width, (row + 0.5) * 96 / height))
    return np.mean(hits)


def test_a_prompt_picks_its_object():
    model, one, two = session(shape_prompts()), [], []
    for seed in range(40):
        scene = classification_scene(HELD_OUT_SEED + seed)
        words = np.array([[scene.objects[0].class_id], [0]])
        maps = model.run(["saliency_map"], {"image": pixels(scene), "words": words})[0]
        one.append((maps[0, 0], scene.objects[0]))
        scene = multi_object_scene(HELD_OUT_SEED + seed, size=96, max_objects=2)
        words = np.array([[item.class_id] for item in scene.objects])
        if len(np.unique(words)) > 1:
            maps = model.run(["saliency_map"], {"image": pixels(scene), "words": words})[0]
            two += zip(maps[0], scene.objects, strict=True)
    assert share_in_box(one) >= 0.95
    assert len(two) >= 28
    assert share_in_box(two) >= 0.75


def test_an_image_is_like_itself_where_its_shape_is():
    model = session(shape_embedding())
    scenes = [classification_scene(HELD_OUT_SEED + seed) for seed in range(40)]
    found = [(model.run(["saliency_map"], {"image": pixels(scene)})[0][0, 0], scene.objects[0]) for scene in scenes]
    assert share_in_box(found) >= 0.9
