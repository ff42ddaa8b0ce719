"""Gradients of the loss with respect to switches and weights, and the Taylor scores made from them."""
