"""What users register: endpoints, the rules they must keep, and the models they name."""
