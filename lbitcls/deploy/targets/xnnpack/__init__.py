"""Models for XNNPACK, through ExecuTorch: from the ONNX graph of integer layers to a `.pte` file.

layers      the integer layers of a graph, each with the kernel that computes it
operators   ONNX's other operators as PyTorch functions, one table
network     the graph as a module that `torch.export` accepts
program     the module as a `.pte` file, and what XNNPACK would leave out
"""
