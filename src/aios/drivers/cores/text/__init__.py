"""Between messages and tokens, for every core that has the model itself.

``template`` (messages to the text of a prompt), ``grammar`` (a JSON Schema to the tokens that may
come next), ``sampling`` (logits to a token), ``guesses`` (tokens that may follow), ``beams`` and
``searches`` (logits to a tree of hypotheses), ``answer`` (tokens to text and tool calls),
``speaker`` (all of it, for one generation).
"""
