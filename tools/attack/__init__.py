"""An adversary: correct and hostile requests against a real service, and what must hold meanwhile."""
