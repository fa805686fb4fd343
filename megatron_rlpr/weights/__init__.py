"""Every parameter's two names, and the ways between them: load, export, hand over."""
