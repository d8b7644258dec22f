"""How a batch job's command runs: one supervisor process a job, forked by a warm agent.

`runner.py` is the server's side; `agent.py` forks supervisors and guards what they leave; `supervisor.py` is one of
them, with its lease in `link.py`, its command in `work.py` and `spawn.py`.
"""
