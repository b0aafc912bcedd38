"""The task whose bytes are counted: what Celery sends and what Node is given are the same."""

NAME = "shop.mail.send_receipt"
KWARGS = {"to": "somebody@example.com", "order": 123456, "lines": ["one", "two"]}
#: All stay, and the text is as long as the usual one.
KEPT = {"removeOnComplete": {"age": 86400, "count": 9000}, "removeOnFail": {"age": 604800, "count": 9000}}
