"""What a study's numbers say."""
