"""What this machine makes of our code: where an image's time goes, the operator and the step against others'."""
