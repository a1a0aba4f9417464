"""Golden reports: the figures of all shipped scenarios and studies, to the last digit (``make golden``)."""
