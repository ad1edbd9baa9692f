"""How fast the engine trains, beside a plain loop and what the hardware allows: python -m kdbench.bench.speed."""
