"""The admin: a change made here appears on the devices at once."""

from django.contrib import admin

from .models import List, Membership, Todo


class MembershipInline(admin.TabularInline):
    """Who shares a list."""

    model = Membership
    extra = 0


@admin.register(List)
class ListAdmin(admin.ModelAdmin):
    """Lists with their members."""

    list_display = ["name", "owner", "created_at"]
    inlines = [MembershipInline]


@admin.register(Todo)
class TodoAdmin(admin.ModelAdmin):
    """To-dos, to be ticked off in the list itself."""

    list_display = ["title", "list", "done", "created_by", "updated_at"]
    list_editable = ["done"]
    list_filter = ["list", "done"]
