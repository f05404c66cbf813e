"""``python -m ippo.doctor``: a minute's examination of a policy and a task before a night is spent on them."""
