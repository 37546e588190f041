"""Output that fits a grammar: a file a backend behind one protocol. Knows no engine, tensors or requests.

`Grammars` compiles what `StructuredOutputsParams` asks for; what it gives back fills masks of the tokens that
may come next.
"""
