"""Screens: each shows one thing and hands what a person did to the session."""
