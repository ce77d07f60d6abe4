"""Code for several processes: exchanges between ranks, comparisons, and reports of failures."""
