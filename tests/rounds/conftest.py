import sys
from pathlib import Path

# the fake run's writers are shared with the report's tests
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reporting"))
