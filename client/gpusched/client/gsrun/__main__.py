"""`python -m gpusched.client.gsrun`."""

from gpusched.client.gsrun.main import main

main()
