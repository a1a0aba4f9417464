"""Secure aggregation: the server learns the sum of the devices' vectors, and of no device its own.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, with the sparse graph
of neighbours of Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020 (SecAgg+),
against a server that is honest but curious. Every pair of neighbours agrees on a mask that one adds and the other
subtracts; every device adds a mask of its own. Sums are of fixed-point integers modulo 2^32 or 2^64, so that the masks
leave nothing behind: the sum is exact.

========== ======================================================================================================
``graph``   who is whose neighbour, and how many must answer
``keys``    key agreement (X25519, HKDF) and sealed shares (AES-GCM), from the package ``cryptography``
``sharing`` Shamir's secret sharing, from the package ``pycryptodome``
``masks``   seeds -> masks (AES-128 in counter mode), added to vectors
``vector``  what a device has to say, as words of fixed number and width
``device``  what one device does at each stage, and what it refuses
``unmask``  what the server does with the sums and shares it got
========== ======================================================================================================
"""
