"""Colour maths behind `inference.color_fix`: colour spaces, histogram matching, low bands."""
