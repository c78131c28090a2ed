"""What each user's devices hold: the lists that the user is a member of, with their members and to-dos."""

from django_localsync.querysets import Stream, auth

from .models import List, Membership, Todo

streams = [
    Stream(
        List.objects.filter(memberships__user=auth.user()),
        Membership.objects.filter(list__memberships__user=auth.user()),
        Todo.objects.filter(list__memberships__user=auth.user()),
        name="shared_lists",
        auto_subscribe=True,
    ),
]
