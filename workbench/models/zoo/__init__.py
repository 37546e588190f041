"""The zoo: the embedded models, the corpus they learn from, their tokenizer, training and card."""
