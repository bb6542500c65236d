"""Caffe's file format: the messages and fields that nets for prediction need, and their numbers.

Fields that are not here matter in training alone, such as fillers and rates of learning, and are read over; a layer of
another kind is refused, see net.py.
"""

from __future__ import annotations

import functools
from typing import Any

from .. import files

# Kinds of layers of 2014, by their word: the number of the word, and today's name.
OLD_TYPES = {
    "NONE": (0, ""),
    "CONCAT": (3, "Concat"), "CONVOLUTION": (4, "Convolution"), "DATA": (5, "Data"), "DROPOUT": (6, "Dropout"),
    "FLATTEN": (8, "Flatten"), "INNER_PRODUCT": (14, "InnerProduct"), "LRN": (15, "LRN"), "POOLING": (17, "Pooling"),
    "RELU": (18, "ReLU"), "SIGMOID": (19, "Sigmoid"), "SOFTMAX": (20, "Softmax"), "SPLIT": (22, "Split"),
    "TANH": (23, "TanH"), "ELTWISE": (25, "Eltwise"), "POWER": (26, "Power"), "SLICE": (33, "Slice"),
    "ABSVAL": (35, "AbsVal"),
}  # fmt: skip

PHASES = {"TRAIN": 0, "TEST": 1}

# message: {field: (number, type, default)}; a type that ends in * is repeated, one with a capital is a message, a
# dict has the words of an enumeration
MESSAGES: dict[str, dict[str, tuple[Any, ...]]] = {
    "BlobShape": {"dim": (1, "int64*")},
    "BlobProto": {
        "num": (1, "int32"), "channels": (2, "int32"), "height": (3, "int32"), "width": (4, "int32"),
        "data": (5, "float*"), "shape": (7, "BlobShape"), "double_data": (8, "double*"),
    },
    "NetStateRule": {"phase": (1, PHASES)},
    "ParamSpec": {"name": (1, "string"), "share_mode": (2, {"STRICT": 0, "PERMISSIVE": 1})},
    "InputParameter": {"shape": (1, "BlobShape*")},
    "ConvolutionParameter": {
        "num_output": (1, "uint32"), "bias_term": (2, "bool", True), "pad": (3, "uint32*"),
        "kernel_size": (4, "uint32*"), "group": (5, "uint32", 1), "stride": (6, "uint32*"), "pad_h": (9, "uint32"),
        "pad_w": (10, "uint32"), "kernel_h": (11, "uint32"), "kernel_w": (12, "uint32"), "stride_h": (13, "uint32"),
        "stride_w": (14, "uint32"), "axis": (16, "int32", 1), "dilation": (18, "uint32*"),
    },
    "PoolingParameter": {

        "pool": (1, {"MAX": 0, "AVE": 1, "STOCHASTIC": 2}),
        "kernel_size": (2, "uint32"), "stride": (3, "uint32", 1), "pad": (4, "uint32", 0),
        "kernel_h": (5, "uint32"), "kernel_w": (6, "uint32"), "stride_h": (7, "uint32"), "stride_w": (8, "uint32"),
        "pad_h": (9, "uint32"), "pad_w": (10, "uint32"), "global_pooling": (12, "bool"),
        "round_mode": (13, {"CEIL": 0, "FLOOR": 1}),
    },
    "InnerProductParameter": {
        "num_output": (1, "uint32"), "bias_term": (2, "bool", True), "axis": (5, "int32", 1), "transpose": (6, "bool"),
    },
    "ReLUParameter": {"negative_slope": (1, "float", 0.0)},
    "ELUParameter": {"alpha": (1, "float", 1.0)},
    "PReLUParameter": {"channel_shared": (2, "bool")},
    "LRNParameter": {
        "local_size": (1, "uint32", 5), "alpha": (2, "float", 1.0), "beta": (3, "float", 0.75),
        "norm_region": (4, {"ACROSS_CHANNELS": 0, "WITHIN_CHANNEL": 1}), "k": (5, "float", 1.0),
    },
    "DropoutParameter": {"dropout_ratio": (1, "float", 0.5)},
    "SoftmaxParameter": {"axis": (2, "int32", 1)},
    "ConcatParameter": {"concat_dim": (1, "uint32"), "axis": (2, "int32", 1)},
    "SliceParameter": {"slice_dim": (1, "uint32"), "slice_point": (2, "uint32*"), "axis": (3, "int32", 1)},
    "EltwiseParameter": {"operation": (1, {"PROD": 0, "SUM": 1, "MAX": 2}, "SUM"), "coeff": (2, "float*")},
    "BatchNormParameter": {"use_global_stats": (1, "bool"), "eps": (3, "float", 1e-5)},
    "ScaleParameter": {"axis": (1, "int32", 1), "num_axes": (2, "int32", 1), "bias_term": (4, "bool")},
    "FlattenParameter": {"axis": (1, "int32", 1), "end_axis": (2, "int32", -1)},
    "ReshapeParameter": {"shape": (1, "BlobShape"), "axis": (2, "int32", 0), "num_axes": (3, "int32", -1)},
    "PowerParameter": {"power": (1, "float", 1.0), "scale": (2, "float", 1.0), "shift": (3, "float", 0.0)},
    "LayerParameter": {
        "name": (1, "string"), "type": (2, "string"), "bottom": (3, "string*"), "top": (4, "string*"),
        "param": (6, "ParamSpec*"), "blobs": (7, "BlobProto*"), "include": (8, "NetStateRule*"),
        "exclude": (9, "NetStateRule*"),
        "phase": (10, PHASES), "concat_param": (104, "ConcatParameter"),
        "convolution_param": (106, "ConvolutionParameter"), "dropout_param": (108, "DropoutParameter"),
        "eltwise_param": (110, "EltwiseParameter"), "inner_product_param": (117, "InnerProductParameter"),
        "lrn_param": (118, "LRNParameter"), "pooling_param": (121, "PoolingParameter"),
        "power_param": (122, "PowerParameter"), "relu_param": (123, "ReLUParameter"),
        "softmax_param": (125, "SoftmaxParameter"), "slice_param": (126, "SliceParameter"),
        "prelu_param": (131, "PReLUParameter"), "reshape_param": (133, "ReshapeParameter"),
        "flatten_param": (135, "FlattenParameter"), "batch_norm_param": (139, "BatchNormParameter"),
        "elu_param": (140, "ELUParameter"), "scale_param": (142, "ScaleParameter"),
        "input_param": (143, "InputParameter"),
    },
    "V1LayerParameter": {  # of 2014
        "bottom": (2, "string*"), "top": (3, "string*"), "name": (4, "string"),
        "type": (5, {word: number for word, (number, _) in OLD_TYPES.items()}),
        "blobs": (6, "BlobProto*"), "concat_param": (9, "ConcatParameter"),
        "convolution_param": (10, "ConvolutionParameter"), "dropout_param": (12, "DropoutParameter"),
        "inner_product_param": (17, "InnerProductParameter"), "lrn_param": (18, "LRNParameter"),
        "pooling_param": (19, "PoolingParameter"), "power_param": (21, "PowerParameter"),
        "eltwise_param": (24, "EltwiseParameter"), "relu_param": (30, "ReLUParameter"),
        "slice_param": (31, "SliceParameter"),
        "include": (32, "NetStateRule*"), "exclude": (33, "NetStateRule*"),
        "softmax_param": (39, "SoftmaxParameter"),
    },
    "NetParameter": {
        "name": (1, "string"), "layers": (2, "V1LayerParameter*"), "input": (3, "string*"), "input_dim": (4, "int32*"),
        "input_shape": (8, "BlobShape*"), "layer": (100, "LayerParameter*"),
    },
}  # fmt: skip


@functools.cache
def net_parameter() -> Any:
    """The class of the message NetParameter."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise files.missing("protobuf", "caffe") from None
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="scratchnet/caffe.proto", package="caffe", syntax="proto2")
    for message, fields in MESSAGES.items():
        descriptor = file.message_type.add(name=message)
        for name, (number, kind, *default) in fields.items():
            entry = descriptor.field.add(name=name, number=number, label=field.LABEL_OPTIONAL)
            if isinstance(kind, dict):
                enum = descriptor.enum_type.add(name=f"Of_{name}")
                for word, value in kind.items():
                    enum.value.add(name=word, number=value)
                entry.type, entry.type_name = field.TYPE_ENUM, f".caffe.{message}.{enum.name}"
            else:
                if kind.endswith("*"):
                    entry.label, kind = field.LABEL_REPEATED, kind[:-1]
                if kind[0].isupper():
                    entry.type, entry.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
                else:
                    entry.type = getattr(field, f"TYPE_{kind.upper()}")
            if default:
                entry.default_value = default[0] if isinstance(default[0], str) else str(default[0]).lower()
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
