"""The course for nbgrader: `cd courses/kpaas-ai && nbgrader generate_assignment 01-first-api`."""

c = get_config()  # type: ignore[name-defined]  # noqa: F821  (nbgrader puts it there)

c.CourseDirectory.course_id = "kpaas-ai"
# One gradebook for instructors; it is no part of the course.
c.CourseDirectory.db_url = "sqlite:///gradebook.db"
# A cell that trains needs longer than the 30 seconds that nbgrader gives.
c.ExecutePreprocessor.timeout = 300
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE · 여기에 답을 쓰세요\nraise NotImplementedError"}
