from fedmask.tasks.demo.films import film_reviews

DEMO_TASKS = {"film_reviews": film_reviews}

from fedmask.tasks.demo.kitchen import kitchen_reviews
DEMO_TASKS["kitchen_reviews"]=kitchen_reviews
from fedmask.tasks.demo.questions import question_type
DEMO_TASKS["question_type"]=question_type
from fedmask.tasks.demo.topics import topic
DEMO_TASKS["topic"]=topic
from fedmask.tasks.demo.paraphrases import paraphrase
DEMO_TASKS["paraphrase"]=paraphrase
