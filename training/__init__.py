"""How the embedded model `nano` was made: data, degradation, codec, training. Not needed to run the program."""
