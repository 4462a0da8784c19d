"""edgekv_tui: front ends for people. They talk to edgekv's public API and to nothing below it."""
