"""Terms on further texts, which hold the rest in place: ``loss(part, options)``, weighted."""
