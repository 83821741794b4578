// Runs a model in onnxruntime-node or onnxruntime-web: `node run.mjs PACKAGE MODEL INPUT.bin SIZES`; prints the map.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [name, model, input, sizes] = process.argv.slice(2);
const ort = createRequire(`${process.env.XAI_INSERT_NODE_MODULES}/`)(name);
const session = await ort.InferenceSession.create(new Uint8Array(await readFile(model)));
const pixels = new Float32Array((await readFile(input)).buffer.slice(0));
const results = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", pixels, sizes.split(",").map(Number)) });
const map = results.saliency_map;
console.log(JSON.stringify({ names: session.outputNames, type: map.type, dims: map.dims.map(Number), values: [...map.data] }));
