"""The PEEL method: NumPy and torch values in, values out. No Flower, no Ray.

Source: Zheng, Qu, Chen, Zheng, Shi, Yin, "Personalized Elastic Embedding Learning for On-Device
Recommendation", arXiv 2306.10532 (IEEE TKDE).
"""

__version__ = "0.1.0"
