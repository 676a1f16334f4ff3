"""Networks that find edges, lines and poses in photographs, for hints of ControlNets."""
