"""onnxruntime: the network as an ONNX graph of Gemm and Relu."""

import onnx
import onnxruntime
from engine import Engine, initial_layers


class OnnxRuntime(Engine):
    def network(self, widths, seed):
        nodes, initializers, name = [], [], "x"
        layers = initial_layers(widths, seed)
        for k, (weight, bias) in enumerate(layers):
            initializers += [onnx.numpy_helper.from_array(a, f"{n}{k}") for n, a in (("w", weight), ("b", bias))]
            nodes.append(onnx.helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"z{k}"]))
            name = f"z{k}"
            if k + 1 < len(layers):
                nodes.append(onnx.helper.make_node("Relu", [name], [f"h{k}"]))
                name = f"h{k}"
        value = onnx.helper.make_tensor_value_info
        ends = [[value(n, onnx.TensorProto.FLOAT, ["n", w])] for n, w in (("x", widths[0]), (name, widths[-1]))]
        graph = onnx.helper.make_graph(nodes, "mlp", *ends, initializers)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
        model.ir_version = 8  # of that operator set; a newer one may be too new for the runtime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, x):
        return self.session.run(None, {"x": x})[0]
