"""optuna-dashboard with a sign-in, checkpoints and pictures of trials."""
