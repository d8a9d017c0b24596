"""The page: static files without a framework, a build or anything from elsewhere."""
