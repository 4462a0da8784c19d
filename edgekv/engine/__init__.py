"""One step of generation: plan where KV lies, run the decoder, commit the result."""
