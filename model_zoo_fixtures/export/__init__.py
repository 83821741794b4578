"""How the fixtures are made; needs torch, timm, torchvision, openvino, onnx, onnxscript and onnxruntime."""
