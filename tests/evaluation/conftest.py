import sys
from pathlib import Path

# The hand-made questions lie beside the tests that use them.
sys.path.insert(0, str(Path(__file__).parent))
