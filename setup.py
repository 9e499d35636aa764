"""What pyproject.toml cannot say: the project's addresses, which the place that builds it knows.

PROJECT_URL is the address of the repository; without it the wheel names none.
"""

import os

from setuptools import setup

url = os.environ.get("PROJECT_URL", "").rstrip("/")
urls = {
    "Repository": url,
    "Issues": f"{url}/issues",
    "Changelog": f"{url}/blob/main/CHANGELOG.md",
}
setup(project_urls=urls if url else {})
