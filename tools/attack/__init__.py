"""Send correct and hostile requests to a real service and check that it keeps its promises."""
