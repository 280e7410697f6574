"""Between messages and tokens, for every core that has the model itself.

``template`` (messages to the text of a prompt), ``grammar`` (a JSON Schema to the tokens that may
come next), ``sampling`` (logits to a token), ``beams`` (logits to several hypotheses), ``answer``
(tokens to text and tool calls).
"""
