"""Models for XNNPACK, through ExecuTorch: from the ONNX graph of integer layers to a `.pte` file.

int8_layers       the integer layers of a graph, each with the kernel that computes it
steps, values     a node as a module, and what it computes from and to
operators         ONNX's other operators as PyTorch functions, one table
network           the graph as a module that `torch.export` accepts
program           the module as a `.pte` file, and what XNNPACK would leave out
"""
