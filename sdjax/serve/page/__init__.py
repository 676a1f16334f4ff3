"""The page in the browser: plain HTML, CSS and JavaScript without a framework or a build step, and its routes."""
