"""The native engine: user functions traced, differentiated, and compiled into one program."""
