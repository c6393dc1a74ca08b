"""Write the dashboards, data sources and alert rules of ``deploy/``."""

from deploy.dashboards.files import DEPLOY, rendered

for path, text in rendered().items():
    file = DEPLOY / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(file)
