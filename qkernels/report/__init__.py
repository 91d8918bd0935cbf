"""`python -m qkernels report`: what quantization did to a model, as one page of HTML and as text."""
