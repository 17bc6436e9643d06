"""See stand_ins/."""
