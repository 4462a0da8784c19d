"""Texts that `bench quality` measures on; where they come from is told in the notice beside each."""
