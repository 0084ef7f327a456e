"""Words: messages, tokenizer, chat template, and the parser of answers. Imports nothing of ours."""
