"""From a GGUF file to a decoder, a tokenizer and a chat template. Importing this imports none of them."""
