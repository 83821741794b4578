"""What each kind of model needs: one module per task, from located parts to a finished branch."""
