"""The operations of the language model's layers. Only matrix products count, two operations per weight and token."""


def layer_maps(text) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear maps of a decoder layer. text (`VideoLLMMoDTextConfig`)."""
    hidden, inner, head_dim = text.hidden_size, text.intermediate_size, text.head_dim
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def forward_operations(text, length: int, entered: int, num_routed: int) -> float:
    """Of all layers in one pass over `length` tokens, of which `entered` enter each of `num_routed` layers."""
    queries, weights = text.num_attention_heads * text.head_dim, sum(a * b for a, b in layer_maps(text))

    def layer(tokens: int) -> float:
        return 2 * tokens * weights + 2 * queries * tokens**2  # each token attends to itself and those before it

    return (text.num_hidden_layers - num_routed) * layer(length) + num_routed * layer(entered)


__all__ = ["forward_operations", "layer_maps"]
