"""Which heads map an ordinal to its successor? `finding` asks; the other modules are its parts."""

from mechinterp_toolkit.analyses.successor_heads.finding import SuccessorHeads, successor_heads
